"""What all commands of the command line share: options, output, exit codes, errors. It must not know any command."""
