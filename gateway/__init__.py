"""The HTTP gateway: a client of the server that speaks the OpenAI API to everybody else."""
