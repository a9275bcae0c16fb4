# Run a workflow every hour
curl -X POST http://localhost:3000/v1/projects/$PROJECT_ID/triggers \
-H "Authorization: Bearer $SERVICE_KEY" \
-H "Content-Type: application/json" \
-d '{
"event_type": "cron",
"config": {"schedule": "0 * * * *"},
"target_type": "workflow",
"workflow_id": "'$WORKFLOW_ID'",
"enabled": true
}'
