"""What the API's routes ask for (`p2pnode.api.services`), carried out with the node's parts.

A service checks a request against what the node knows, hands it to the part whose matter it is, and turns the result
into a view. It decides nothing about money: that is the trade machine's.
"""
