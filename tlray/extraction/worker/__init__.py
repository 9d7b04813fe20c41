"""What a worker does with a unit: fetch, decode, encode, write."""
