"""`emuedit doctor`: checks of the installation, the machine, the servers and the working folder."""
