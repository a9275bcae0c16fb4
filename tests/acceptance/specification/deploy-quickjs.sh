curl -X POST http://localhost:3000/v1/projects/$PROJECT_ID/functions/deploy \
-H "Authorization: Bearer $SERVICE_KEY" \
-H "Content-Type: application/json" \
-d '{
"name": "Get User Orders",
"slug": "get-user-orders",
"runtime": "quickjs",
"language": "javascript",
"source": "export default async function(input) { const rows = await atlas.db.query(\"SELECT * FROM orders WHERE user_id = $1\", [input.user_id]); return { orders: rows }; }"
}'
