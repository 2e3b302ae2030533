"""What transformer blocks are made of, one short file each. Every layer is `spec(...)` and a pure function."""
