from ringexp.cli import main

main()
