"""The page for the person on call, at the HTTP front's `/ui/`: it reads what the gateway knows anyway."""
