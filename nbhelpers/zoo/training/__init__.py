"""How the zoo was trained and shipped; nothing else imports it."""
