"""Messages of the CRI, generated from `proto/api.proto` by betterproto2 (`scripts/generate-api`); never edited."""
