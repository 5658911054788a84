"""The whole loop on one machine: a broker, a server, devices, and a page about what came out."""
