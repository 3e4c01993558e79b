"""The web page and its API: JSON and WebSocket views of the tape, the services and a migration."""
