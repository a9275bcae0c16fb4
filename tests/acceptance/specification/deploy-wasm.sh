curl -X POST http://localhost:3000/v1/projects/$PROJECT_ID/functions/deploy \
-H "Authorization: Bearer $SERVICE_KEY" \
-H "Content-Type: application/json" \
-d '{
"name": "Hash Calculator",
"slug": "hash-calc",
"runtime": "wasm",
"language": "javascript",
"source": "export default function(input) { return { hash: input.data.split(\"\").reduce((a,b) => ((a << 5) - a) + b.charCodeAt(0), 0) }; }"
}'
