"""What a person sees, without a host: payloads for the shared renderer, and state that plain code can ask."""
