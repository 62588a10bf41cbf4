"""The demo: a real collection that every machine has, with topics and judgements."""
