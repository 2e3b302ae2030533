"""Models: each is `Config`, `spec(cfg)`, `init(key, cfg)` and `apply(params, x, cfg)`."""
