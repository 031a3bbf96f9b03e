"""What people edit with: the class `Editor`, sessions of many turns, images of any size, and the commands."""
