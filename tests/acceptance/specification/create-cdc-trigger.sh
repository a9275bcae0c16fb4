# Run a function on every new order over $100
curl -X POST http://localhost:3000/v1/projects/$PROJECT_ID/triggers \
-H "Authorization: Bearer $SERVICE_KEY" \
-H "Content-Type: application/json" \
-d '{
"event_type": "cdc.INSERT.orders",
"target_type": "function",
"function_id": "'$FUNCTION_ID'",
"conditions": [{"field": "amount", "op": "gt", "value": 100}],
"enabled": true
}'
