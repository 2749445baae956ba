//! Writes the project's own fixtures.
