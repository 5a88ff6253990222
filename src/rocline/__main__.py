from rocline.cli import main

main()
