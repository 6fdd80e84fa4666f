"""Everything that speaks Label Studio's API or JSON. Torch-free.

::

    client.py           label-studio-sdk on an HTTP client of our own; one method for each call
    formats.py          label configs, tasks and annotations read, predictions written, requests of Label Studio; no I/O
    sync.py             tasks and annotations, read at the cost of what changed   (rounds.interfaces.LabelSource)
    publisher.py        a ranking published, and checked                          (rounds.interfaces.Publisher)
    connect.py          a project connected to this backend
    images.py           the bytes of an image                                     (images.source.ImageSource)
    external_images.py  downloads from other hosts: allow-list, SSRF checks, limits
"""
