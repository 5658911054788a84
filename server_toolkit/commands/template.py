"""The commented server.toml that `init` writes."""

SERVER_TOML = """\
# One federated run. Relative paths are relative to this file.

[run]
name = {name}
rounds = {rounds}                  # then the pipeline makes the robust model and releases it

[model]                      # fixed: the ledger and the devices' program were made for it
# mean and std are of the pixels in [0, 1], a number a channel
{model}
[broker]                     # MQTT; TLS is used when tls_ca is set
host = {host}
port = {port}
# username = "server"
# password_file = "keys/broker-password"
# tls_ca = "keys/ca.crt"
# tls_certificate = "keys/server.crt"
# tls_key = "keys/server-tls.key"

[training]                   # what devices do in a round: SGD as torch defines it
epochs = 1
batch_size = 32
learning_rate = 0.05
momentum = 0.9
weight_decay = 0.0
proximal_mu = 0.0            # above 0: FedProx
seed = {seed}
micro_batch = {micro_batch}              # fixed, as the next: the program was made for them
precision = {precision}           # or "simulated-int8", "int8" (docs/quantized_training.md)
encoding = "int8"            # of updates; or "fp32", "int4", "topk-0.05" (docs/updates.md)

[rounds]                     # a round closes when every active device has reported, or
quorum = 2                   # with at least this many updates
deadline_s = 600             # after this time; below the quorum it waits as long again

[limits]                     # what one device may ask for; 0: the default, or no limit
max_update_bytes = 0
max_open_transfers_per_device = 2
max_update_norm = 0.0

[data]                       # the server's own labelled images: npz with `images` and `labels`
# server_set = "server_set.npz"
# test_set = "test.npz"

[distill]                    # the defaults are the measured recipe of docs/robustness.md
# start = "structured"       # or "noise", "shapes", "textures", "server_set", "server_blends"
# images_per_class = 40
# iterations = 300
# student_steps = 6

[harden]
# epsilon = 0.1              # the attack to withstand: l-infinity on pixels in [0, 1]
# steps = 300
# objective = "kl"           # or "pgd_at", "trades", "mart", "fast", "free" (docs/hardening.md)
# label_source = "teacher"   # what the federated model says; or "hard", "learned", "ensemble"

[evaluate]                   # [harden] epsilon must be among them
epsilons = [0.05, 0.1]
steps = 20
seed = 0

[release]                    # what a model must reach to be signed
name = {name}
min_clean = 0.0
max_clean_drop = 1.0         # against the federated model
min_robust_gain = 0.0
# expires_after_s = 7776000

[release.health]             # what it must reach on a device's own images, or that goes back
min_accuracy = 0.0
max_accuracy_drop = 1.0

[pipeline]                   # after the last round
enabled = true
arm = "trajsyn_server_set"   # "trajsyn_noise" needs no image on the server

[schedule]                   # hardening between rounds: nothing more to do for devices
harden = "none"              # "recommended", or windows of your own (docs/operations.md)
# early_steps = 80           # of each hardening in the first window
# late_steps = 120           # later
# start_images_per_class = 100  # to harden on before there is a proxy set
"""
