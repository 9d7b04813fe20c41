"""Conditions on the columns of rows, in a small part of SQL: `price < 10 and site = 'A'`."""
