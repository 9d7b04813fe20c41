"""The S3 store: requests by boto3, errors in tlray's words, and what delta-rs has to be told."""
