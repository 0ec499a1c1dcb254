"""An inference engine without a model, for tests and benches."""
