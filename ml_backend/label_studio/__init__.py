"""Everything that speaks Label Studio's API or JSON. Torch-free.

::

    formats.py     label configs and JSON, read into our records and written from them; no I/O
    access.py      the two kinds of API key
    route.py       the HTTP client for one server: certificates, proxy, why no answer came
    transport.py   requests: time-outs, what is repeated, what a refusal says
    client.py      the calls, one method each
    version.py     which release answers
    mirror.py      what was read last
    reading.py     what has changed since
    labels.py      annotations and pool     (engine.ports.LabelSource)
    duplicates.py  which tasks hold the same image
    supply.py      how much of what is published is left
    images.py      the bytes of an image    (images.source.ImageSource)
    image_addresses.py  addresses of images: data URIs, and what is wrong with the others
    elsewhere.py   images from other hosts: allowed ones only
    publisher.py   the ranking goes out     (engine.ports.Publisher)
    serving.py     what readers are served, compared with what was published
    connect.py     prepares a project, in one go
"""

__all__: list[str] = []
