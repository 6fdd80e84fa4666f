"""The same rounds without Label Studio: an oracle knows every label and gives away only those that are asked for.

``tables`` reads what the user gives (``table_files`` the rows of any CSV file), ``dataset`` makes one checked data set
of it, ``oracle`` answers for its readers, ``loop`` runs the rounds, ``drawn`` draws a study that runs anywhere. Nothing
is imported here: the demo reads its tables without loading what the rounds need.
"""

__all__: list[str] = []
