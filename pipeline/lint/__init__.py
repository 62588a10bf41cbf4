"""Checking files of others: runs of TREC and MS MARCO, judgements, topics; and mending runs."""
