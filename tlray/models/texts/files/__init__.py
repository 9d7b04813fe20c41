"""Files of word vectors, read and checked: what a header claims is believed only where the file bears it out."""
