@app.route("/mail")
def mail_of_user():
    # the name of the user whose mail address is wanted
    name = request.args.get("name", "")
    # find the element <user name="..."> in the document and take its child <mail>