@app.route("/user", methods=["POST"])
def get_user():
    # name and mail address are fields of the JSON body
    data = request.get_json()
    # find the user of that name and mail address