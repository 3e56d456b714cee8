"""Tierfall's HTTP side: OpenAI's API in, the ladder, NATS out."""
