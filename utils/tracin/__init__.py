"""The score: read self_influence first, then engines, scoring and scores."""
