from ringexp.cli import dispatch

dispatch()
