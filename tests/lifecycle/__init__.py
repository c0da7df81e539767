"""The life of a run, with everything in it killed, stopped and raced, in processes of their own."""
