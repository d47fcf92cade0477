"""One SQLite file as broker and storage: a native writer thread, wake-ups, and one watcher for all queues."""
