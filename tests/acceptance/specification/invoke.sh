curl -X POST http://localhost:3000/functions/v1/invoke/get-user-orders \
-H "Authorization: Bearer $ANON_KEY" \
-H "Content-Type: application/json" \
-d '{"user_id": "abc-123"}'
