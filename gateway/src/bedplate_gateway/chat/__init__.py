"""The page `/chat`, where people try the models in a browser."""
