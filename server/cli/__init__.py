"""The command line `atlas`: a gRPC client of the API, for people and scripts. Of the server it knows the protos alone.

Exit codes:

    0    done
    1    the function failed: it threw, or met a limit
    2    a bad command line, or a bad file of the author's
    3    refused: bad input, a wrong key, not found
    4    the server cannot be reached, or cannot serve now
    130  ended by Ctrl-C
"""
