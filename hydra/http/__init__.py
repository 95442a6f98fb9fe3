"""OpenAI's API and the cluster's own, over HTTP.

May import: text, store, protocol, actors.client.
Refuses to know: any actor but its client; stages, routes, sockets of the cluster.
"""
