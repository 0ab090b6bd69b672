"""`python -m actinium` is the command line."""

from actinium.cli import main

if __name__ == "__main__":
    main()
