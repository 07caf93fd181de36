"""S20: requests in which two readers could find different ends, and one that hides behind them."""


def line(name: str) -> bytes:
    return f"GET {name} HTTP/1.1\r\nHost: x\r\n".encode()


HIDDEN = line("/hidden") + b"\r\n"
SMUGGLING = {
    "length and chunks": b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": b"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 0\r\nContent-Length: 44\r\n\r\n",
    "a list of lengths": b"Content-Length: 0, 44\r\n\r\n",
    "a signed length": b"Content-Length: +0\r\n\r\n",
    "a negative length": b"Content-Length: -1\r\n\r\n",
    "a length in other digits": "Content-Length: \u0660\r\n\r\n".encode(),
    "a hexadecimal length": b"Content-Length: 0x0\r\n\r\n",
    "a space before the colon": b"Content-Length : 0\r\n\r\n",
    "an unknown coding": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked not last": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "a vertical tab": b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a folded line": b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "a bare line feed": b"X: y\nContent-Length: 0\n\n",
    "a bare return": b"X: y\rContent-Length: 0\r\n\r\n",
    "a null byte": b"X: \0\r\n\r\n",
    "a name with a space": b"Content Length: 0\r\n\r\n",
    "no name": b": 0\r\n\r\n",
    "no colon": b"Content-Length\r\n\r\n",
}
