@app.route("/import", methods=["POST"])
def import_repository():
    # the address of the repository
    address = request.form["address"]
    folder = tempfile.mkdtemp()
    # clone it into the folder with git