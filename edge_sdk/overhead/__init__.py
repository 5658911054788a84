"""What a round costs on this device: time, memory, bytes, temperature, energy; `edge-sdk bench`."""
