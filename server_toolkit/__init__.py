"""The server: ledger, rounds, distillation, hardening, evaluation and releases."""
