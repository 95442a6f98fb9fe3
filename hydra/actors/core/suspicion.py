"""When one session is suspected of ending the processes that compute it. Numbers only: the session counts its deaths,
the scheduler computes it alone.
"""

DEATHS_MAX = 2  # in flight at so many deaths: replayed alone; at one more: ended
SOLITARY_TOKENS = 8  # tokens past its replay after which a lone session is no longer suspected
