"""The kinds of reports, one file each: from what is there to the sections of a page."""
