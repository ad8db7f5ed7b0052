"""A page to look at a run: `python -m autoif.report OUT` writes OUT/report.html.

gather.py reads what the run has, against.py what changed since another, page.py lays it out;
page.html is its template; page.css and samples.js go into it, and it asks no server for anything.
"""
