"""The front door inside a program that has Greenroom in it: without a port, or on a unix socket.

- `loop_thread`: an event loop of its own, in a thread
- `inside`: requests of the program itself, to the ASGI application in such a loop
- `transports`: these requests as httpx makes them, sync and async
- `official`: OpenAI's, Anthropic's and Ollama's clients on such a transport
- `unix_door`: the front door on a unix socket, for other processes
"""
