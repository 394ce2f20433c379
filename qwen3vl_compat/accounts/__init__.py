"""Who may call: the database of tenants and keys, its migrations, and how a good key is told from a bad one."""
