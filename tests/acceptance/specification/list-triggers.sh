curl http://localhost:3000/v1/projects/$PROJECT_ID/triggers \
-H "Authorization: Bearer $SERVICE_KEY"
