"""Data of users: `emuedit init` writes params and deps for photographs; `benchmark`, `import` and `export` check and convert."""
