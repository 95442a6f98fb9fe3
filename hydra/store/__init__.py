"""The cellar: model directories and the bytes in them. Speaks files; never torch, trio or zmq."""
