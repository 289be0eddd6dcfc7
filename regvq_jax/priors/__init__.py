"""Priors over tokens as pure functions; the network comes in as a callable."""
